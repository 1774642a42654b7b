"""Fuzzing that is led by what code a document reaches (Atheris, on libFuzzer): ten minutes of `make test-long`."""
