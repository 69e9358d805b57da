"""MediaPipe's face mesh, differentiable, and what is done with faces in pictures."""
