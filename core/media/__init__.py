"""Clips: reading and writing pictures and movies, and their colour.

    numbering       frame numbers in text: ranges, `####`, `%04d`
    sequences       the files of a sequence on disk
    clip            Clip, Frame, Window; the file types and sizes that are accepted
    pictures        one picture: decoding through OpenImageIO, channels, windows, colour space
    movies          one movie: demuxing and decoding through FFmpeg (PyAV)
    read            open_clip and read_frames, for both
    write           EXR, PNG and movies
    contact_sheet   labelled pictures in rows
    colour          plate colour to network colour and back (OpenColorIO)
    errors          what can be wrong with a clip

A new picture format needs its suffix in `clip.PICTURES` and in the wire's `STILLS`
(`reenact.protocol`), and a rule for its colour space in `pictures.picture_space`;
another bit depth of a format that OpenImageIO decodes (12-bit DPX) needs nothing. A new movie
container needs its suffix in `clip.MOVIES` and the wire's, another pixel format its conversion
in `movies._to_rgb`. A new format to write is a function in `write`.
"""
