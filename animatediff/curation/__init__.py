"""The pair factory: candidates made by a motion-transfer method, filtered, and written as training pairs."""
