"""What the recipes that train share: settings, models, stages and the folder of a run."""
