"""The method as pure rules: who is asked what, who wins the vote, who learns from what. No disk, no engine."""
