"""The hooks through which plugins enter: what they are (`specs`), who is found and called (`registry`)."""
