"""The engine of the evaluation: stages of attacks on a queue of examples."""
