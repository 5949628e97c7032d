"""What the policy for what breaks again is worth, on a trace of faults and on generated histories."""
