"""The data layer. Importing any of its modules makes the named data sets known as well."""

from graftwerk.data import presets as presets
