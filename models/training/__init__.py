"""How the entity model is made: word lists, sentence templates, training and scoring."""
