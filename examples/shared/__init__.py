"""What the programs share: flags, data, training, reports. No program is in here."""
