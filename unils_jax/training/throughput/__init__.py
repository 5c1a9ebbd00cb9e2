"""What a step costs and what a chip could do: operations, data sheets, profiles."""
