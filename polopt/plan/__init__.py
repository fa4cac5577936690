"""Plans: what a training step takes on devices that are not here, before anybody pays for them.

The very functions that a run compiles are compiled for a topology by its own compiler, from shapes
alone; what they hold and compute is also counted from the shapes, by kind.
"""
