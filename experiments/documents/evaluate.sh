#!/usr/bin/env bash
# The one evaluation on test of the documents experiment (protocol.md), after train.sh. It goes on where it was
# stopped. What is chosen is chosen on validation questions: the checkpoint of each run; for each reader and seed the
# expansion of SFT's boxes, by the evaluation itself, and that of GRPO's, by an evaluation before it.
set -euo pipefail
cd "$(dirname "$0")/../.."
documents=data/documents
runs=runs/documents
declare -A targets=([reader]=$runs/reader/reader [rapidocr_v4]=rapidocr:v4@160 [rapidocr_v6]=rapidocr:v6@160
  [tesseract]=tesseract@160)
declare -A questions=([receipts]=1000 [pages]=1600 [street]=1000) # at most; the first ones are a sample of all
chosen="python experiments/documents/chosen.py"

python experiments/documents/measure_reader.py --documents=$documents --reader=$runs/reader/reader --split=test \
  --save=$runs/test/reader.json
for seed in 0 1 2; do
  croppers=start=$runs/start/cropper,sft=$runs/sft_$seed/cropper
  for arm in grpo_accuracy grpo_black_box grpo_likelihood; do
    last=$arm=$($chosen --run=$runs/${arm}_$seed)
    croppers=$croppers,$last
  done
  for suite in receipts pages street; do
    for reader in reader rapidocr_v4 rapidocr_v6 tesseract; do
      asked=(--benchmark=jsonl --folder=$documents/$suite --metric=contains --targets="${targets[$reader]}")
      val=$runs/val/$suite/$reader/$seed
      cropvlm evaluate "${asked[@]}" --split=val --limit=300 --croppers="$last" --expansions=0.25,0.5,2,4 --out="$val"
      cropvlm evaluate "${asked[@]}" --split=test --limit=${questions[$suite]} --croppers="$croppers" \
        --expansions="$($chosen --evaluation="$val")" --best_scale_split=val --best_scale_items=300 \
        --out=$runs/test/$suite/$reader/$seed
    done
  done
done
# Accuracy against expansion, of the boxes of seed 0 and of the true ones.
for suite in receipts pages; do
  for reader in reader rapidocr_v4 rapidocr_v6 tesseract; do
    cropvlm evaluate --benchmark=jsonl --folder=$documents/$suite --metric=contains --targets="${targets[$reader]}" \
      --split=test --limit=300 --croppers=grpo_likelihood="$($chosen --run=$runs/grpo_likelihood_0)" \
      --expansions=0.25,0.5,2,4,8,16,64 --out=$runs/expansions/$suite/$reader
  done
done
python experiments/documents/results.py --evaluations=$runs/test --expansions=$runs/expansions \
  --reader=$runs/test/reader.json --save=experiments/documents/results.json
