from hypothesis import settings

settings.register_profile("growth", deadline=None, max_examples=25, derandomize=True, print_blob=True)
settings.load_profile("growth")
