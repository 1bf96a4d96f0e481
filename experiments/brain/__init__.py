"""Real volumes: tissues of the MNI152 template, brains of three heads, regions of six donors; see docs/brain.md."""
