#!/bin/sh
# QLoRA on a GPU in one go: the tests, then speed, peak memory and losses with a whole, an 8-bit and
# a 4-bit base. The results go to a folder: sh benchmarks/lora_quantized.sh FOLDER [MORE OPTIONS]
# bitsandbytes and peft are needed. On a CPU, with the bundled model:
#   SIZES=8bit TESTS= sh benchmarks/lora_quantized.sh FOLDER --rows 32 --ours 2
set -e
folder=${1:?a folder for the results}
shift
python=${PYTHON:-python}
mkdir -p "$folder"
if [ -n "${TESTS-yes}" ]; then
    "$python" -m pytest -q -m gpu tests/gpu/test_lora_gpu.py 2>&1 | tee "$folder/tests.txt"
    set -- --random-weights 7b --rows 48 --ours 2 4 8 --checkpointed 8 "$@"
fi
for size in ${SIZES-none 8bit 4bit}; do
    quantize=$([ "$size" = none ] || echo "--quantize $size")
    "$python" benchmarks/lora_training.py $quantize "$@" --output "$folder/lora_training_$size.json"
done
