"""The search for a recipe: a space of recipes, who proposes, what a trial is, and the winner."""
