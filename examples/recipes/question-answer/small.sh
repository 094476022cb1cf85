# SmolLM2-135M on two cores, some minutes.
MODEL=smollm2-135m
PEOPLE=60
EPOCHS=12
BATCH=8
LEARNING_RATE=2e-3
