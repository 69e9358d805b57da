"""Faces in pictures: MediaPipe's face mesh, differentiable, and what is computed from it.

network         the face mesh and the face detector as torch modules, with their geometry
tflite_graph    a .tflite file as a torch module
keypoints       named points of the mesh
landmarks       meshes and keypoints of aligned pictures, and their distance
measures        expression and pose as numbers
tracking        one face through a clip; cuts
temporal        frames that belong together in time
alignment       FFHQ's square around a face: quads, warp, paste
stmap           the same for Nuke: STMaps and corner pins
aligned_clip    a clip of aligned pictures
sheets          pictures of tracked faces
perceptual      perceptual metrics
identity        whose face a picture shows
"""
