from hypothesis import Phase, settings

import pretrain.families  # noqa: F401, it registers the families

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
