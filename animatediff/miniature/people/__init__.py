"""The people world whole: stick people whose motion changes, and the miniature of MotionFollower trained on them."""
