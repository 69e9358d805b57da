"""Distils the base generator from the performer: a StyleGAN2 that draws what the performer does.

    python -m core.synthetic.distill FOLDER [--resolution 128]

Each picture is a draw of the performer's parameters, aligned as every clip is. The first entries
of a latent z are the parameters' standard normals, the others are noise on which the picture does
not depend, and |z|^2 = 512, so ordinary normal draws of z give ordinary people. Seven stages:

1. The generator learns, supervised, the way from z to the picture.
2. An encoder learns the way back, from a picture to its w.
3. Both go on together as an autoencoder: finding the w of a given picture is so much easier than
   finding it from the parameters that the synthesis network learns far more this way.
4. The mapping network learns the w that the encoder finds. An error in w counts by the change of
   the picture.
5. All three go on together, and a loss on facial landmarks is added.
6. The encoder alone goes on, now that the generator stays as it is.
7. The mapping network learns the encoder's w once more, from a teacher. The teacher gets features
   that the mapping network must find out for itself (`cues`), so it learns w from fewer pictures
   than there are draws, and then labels any number of draws.

Everything is kept in FOLDER: rendered pictures (shards), checkpoints, the log, sheets. The same
command goes on where it stopped (stages 4 and 7, some minutes each, start over). The results are
`base.safetensors` and `encoder.safetensors` there.
"""
