"""`graftwerk verify-resume`: whether a run that is killed ends as one that nobody killed."""
