"""The command line: verbs that string the stages together. Nothing imports this package."""
