"""MotionFollower (Tu et al., arXiv 2405.20325): what a person does in a video changes, everything else is kept."""
