"""Clips: reading and writing pictures and movies, and their colour.

    numbering       frame numbers in text: ranges, `####`, `%04d`
    sequences       the files of a sequence on disk
    clip            Clip, Frame, Window; the file types and sizes that are accepted
    pictures        one picture: decoding through OpenImageIO, channels, windows, colour space
    movies          one movie: demuxing and decoding through FFmpeg (PyAV); its frame numbers
    movie_pixels    RGB of its decoded pictures, for every pixel format
    movie_geometry  how they are turned, mirrored and cropped
    read            open_clip and read_frames, for both
    write           EXR, PNG and movies
    contact_sheet   labelled pictures in rows
    colour          plate colour to network colour and back (OpenColorIO)
    errors          what can be wrong with a clip

A new picture format needs its suffix in `clip.PICTURES` and in the wire's `STILLS`
(`reenact.protocol`), and a rule for its colour space in `pictures.picture_space`;
another bit depth of a format that OpenImageIO decodes (12-bit DPX) needs nothing. A new movie
container needs its suffix in `clip.MOVIES` and the wire's, and FFmpeg's name in `movies`;
another pixel format its row in `movie_pixels`. A new format to write is a function in `write`.
"""
