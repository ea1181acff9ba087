"""Which of ten announcers speaks; speaker, microphone and language are confounded.

`data` needs numpy, soundfile and apt; `recipe` needs the compiler.
"""
