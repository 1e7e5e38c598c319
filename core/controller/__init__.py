"""The controller process: ticks, commands, scrub, emergencies."""
