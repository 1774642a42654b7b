from hypothesis import Phase, settings

settings.register_profile(
    "growth",
    deadline=None,
    max_examples=25,
    derandomize=True,
    print_blob=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
)
settings.load_profile("growth")
