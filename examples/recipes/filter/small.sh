# SmolLM2-135M learns from itself on two cores, some minutes: the steps, not the gain.
TEACHER=smollm2-135m
MODEL=smollm2-135m
CONVERSATIONS=
MAX_TOKENS=96
CONTEXT=8192
EPOCHS=2
BATCH=4
LEARNING_RATE=5e-4
