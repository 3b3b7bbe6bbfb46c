# Votes against majority labels, and against votes of which a third is left out, by the flags `recipe`; sourced
# by the others, in the checkout.
mtmm evaluate run --out "$out/majority" "${recipe[@]}" --labels majority
mtmm evaluate run --out "$out/votes" "${recipe[@]}" --labels votes
mtmm evaluate compare "$out/majority" "$out/votes" --out "$out/comparison"
mtmm evaluate risk "$out/majority" "$out/votes" --out "$out/risk"
mtmm evaluate run --out "$out/dropped" "${recipe[@]}" --labels votes --vote_dropout 0.33
mtmm evaluate compare "$out/votes" "$out/dropped" --split validation --out "$out/comparison_of_dropout"
