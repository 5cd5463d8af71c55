"""What everything stands on: types, specs, seeds, errors. Imports nothing of modicum above itself."""
