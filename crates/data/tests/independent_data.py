"""What other people's libraries make of data, for tests/independent.rs. A JSON value comes on standard input.

    parquet FOLDER   writes the rows as Parquet files of several kinds. PyPI: pyarrow.
    csv FOLDER       writes the rows with Python's csv module, in several dialects.
    chat             token ids and assistant masks of conversations. PyPI: transformers (no PyTorch).
"""

import csv
import json
import os
import sys


def parquet(folder, tables):
    import pyarrow
    import pyarrow.parquet

    kinds = {
        "snappy": {"compression": "snappy"},
        "plain": {"compression": "none", "use_dictionary": False},
        "v2": {"compression": "snappy", "data_page_version": "2.0", "version": "2.6"},
        "small_pages": {"compression": "snappy", "data_page_size": 64, "row_group_size": 3},
        "deltas": {
            "compression": "none",
            "use_dictionary": False,
            "column_encoding": "DELTA_BYTE_ARRAY",
        },
    }
    for name, rows in tables.items():
        table = pyarrow.Table.from_pylist(rows)
        for kind, options in kinds.items():
            if kind == "deltas" and name != "pairs":
                continue  # For columns of text alone.
            pyarrow.parquet.write_table(table, os.path.join(folder, f"{name}-{kind}.parquet"), **options)
    table = pyarrow.Table.from_pylist(tables["pairs"])
    pyarrow.parquet.write_table(table, os.path.join(folder, "zstd.parquet"), compression="zstd")
    large = pyarrow.table({key: pyarrow.array(table[key].to_pylist(), pyarrow.large_string()) for key in table.column_names})
    pyarrow.parquet.write_table(large, os.path.join(folder, "pairs-large.parquet"))


def write_csv(folder, rows):
    dialects = {
        "excel": {},
        "unix": {"dialect": "unix"},
        "semicolon": {"delimiter": ";", "lineterminator": "\n"},
        "tab": {"dialect": "excel-tab"},
    }
    for name, options in dialects.items():
        with open(os.path.join(folder, f"{name}.csv"), "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), **options)
            writer.writeheader()
            writer.writerows(rows)


def chat(given):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = given["tokens"]
    vocabulary = {token: idx for idx, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in given["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    # As the model's own tokenizer.json has it.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(tokens[idx], special=True, normalized=False) for idx in given["special"]])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = given["template"]
    answers = []
    for messages in given["conversations"]:
        encoded = fast.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        answers.append({"ids": list(encoded["input_ids"]), "mask": list(encoded["assistant_masks"])})
    return answers


def main():
    given = json.load(sys.stdin)
    match sys.argv[1:]:
        case ["parquet", folder]:
            parquet(folder, given)
        case ["csv", folder]:
            write_csv(folder, given)
        case ["chat"]:
            json.dump(chat(given), sys.stdout)
        case arguments:
            sys.exit(f"unknown arguments: {arguments}")


if __name__ == "__main__":
    main()
