"""How good a reenacted shot is, frame by frame.

definitions    the measures, their limits, and the data of a measured shot
measure        measure_shot: observes pictures and compares them
marks          which frames are marked, and the repairs they suggest
cards          a picture per frame: driver beside result
export         key figures, JSON and CSV
report         the HTML page
recognition    identity and expression by the user's own networks
niqe           picture quality without a reference
"""
