"""Pages for people, without anything from elsewhere: one answer holds its own style and script."""
