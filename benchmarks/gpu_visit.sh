#!/bin/sh
# A GPU's tests of the engine and its speed for one question, in about four minutes:
#   sh benchmarks/gpu_visit.sh FOLDER
# The benchmark comes first; what goes wrong in one part does not keep the next from running.
folder=${1:?a folder for the results}
python=${PYTHON:-python}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$folder"
timeout 110 "$python" benchmarks/one_question.py --random-weights 7b --repeats 3 \
    --output "$folder/one_question_gpu_7b.json" 2>&1 | tail -60
timeout 150 "$python" -m pytest -q -p no:cacheprovider -m gpu -x --durations=8 \
    tests/gpu/test_batch_gpu.py tests/gpu/test_serving_gpu.py > "$folder/tests.txt" 2>&1
tail -40 "$folder/tests.txt"
