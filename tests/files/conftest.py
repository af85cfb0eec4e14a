from tests.disk import disk, small_disk  # noqa: F401
