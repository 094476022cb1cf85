# A teacher behind an endpoint, Llama-3.1-8B on a GPU.
TEACHER=http://127.0.0.1:8000
MODEL=meta-llama/Llama-3.1-8B-Instruct
CONVERSATIONS=hub:lmsys/lmsys-chat-1m
MAX_TOKENS=2048
CONTEXT=8192
EPOCHS=2
BATCH=16
LEARNING_RATE=2e-4
