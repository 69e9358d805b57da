"""From a latent track to pictures in the plate.

drawing        codes -> generated pictures, plain or in a style
geometry       where the generated face and its head are in each frame, steadied over time
matte          the mattes of head, face and facial parts
patch          a picture in its place in the plate: RGBA, layers, and merging it over the plate
frames         write_frames: all frames of a track as EXR files
grain, motion, colour_match    the plate's grain, motion blur and skin colour
preview        contact sheet and movie beside the driving clip
"""
