from tests.disk import small_disk  # noqa: F401
