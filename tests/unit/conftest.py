"""What the unit tests share."""

from hypothesis import settings

# these machines are noisy: an example that takes long proves nothing
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
