# What types-nuke lacks of Nuke's own Python packages, as far as the plugin uses it.
from . import panels as panels
