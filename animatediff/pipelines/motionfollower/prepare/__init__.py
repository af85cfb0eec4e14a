"""Two videos in, everything that MotionFollower needs out: frames, skeletons, alignment, masks, and a sheet to look at."""
