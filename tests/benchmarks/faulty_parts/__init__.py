"""Parts of the GPU check that go wrong, each in its own way."""
