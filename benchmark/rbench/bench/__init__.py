"""Our plans beside AutoAttack: the same model, images and seeds, in one process, in turn. What each broke, and what it cost."""
