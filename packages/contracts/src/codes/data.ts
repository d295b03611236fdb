/** Codes about datasets: their files, their rows, their reports, and imports from elsewhere. */
import { defineArea } from "./define-area.ts";

export const fileCodes = defineArea(
  { title: "Files of a dataset", where: "packages/datasets, services/ingest", audience: "user" },
  {
    EMPTY_FILE: ["The file has no row.", "Upload a file with at least one training example."],
    CONTAINER_UNSUPPORTED: [
      "The file is packed or encoded in a way that is not read.",
      "Save it as JSON Lines, JSON, CSV, Parquet or Arrow, unpacked or packed once.",
    ],
    FILE_CORRUPT: ["The file's bytes are damaged.", "Write the file again and upload it again."],
    FILE_TRUNCATED: ["The file ends too early.", "Write the file again, close it, and upload it again."],
    FILE_TOO_LARGE: ["The file, unpacked, is larger than the limit.", "Split it into several datasets."],
    ROW_TOO_LARGE: ["One row has more bytes than a row may have.", "Shorten the row, or split it into several."],
    NOT_UTF8: ["A row is not UTF-8 text.", "Save the file as UTF-8."],
    NOT_JSON: ["A row, or the whole file, is not JSON.", "Correct the row that the message names."],
    CSV_HEADER: ["The first row of a CSV file does not name its columns.", "Put the columns' names into the first row, each once."],
    CSV_QUOTES: [
      "A quoted cell of a CSV file is not closed, or is followed by text.",
      "Correct the quotes in the row that the message names.",
    ],
    CSV_RAGGED: ["A row of a CSV file has more or fewer cells than its header.", "Give each row as many cells as there are columns."],
    ALL_ROWS_REJECTED: ["No row of the dataset could be read as an example.", "Correct what the counted reasons say, or give a mapping."],
    TOO_MANY_UNKNOWN: ["Too many rows are in no known format, although others are.", "Correct these rows, or give a mapping for them."],
  },
);

export const rowCodes = defineArea(
  { title: "Rows of a dataset", where: "packages/datasets", audience: "user" },
  {
    NOT_AN_OBJECT: ["A row is JSON, but no object.", "Write each example as one JSON object."],
    FORMAT_UNKNOWN: ["A row has fields of no known format.", "Rename the fields as docs/formats.md lists them, or give a mapping."],
    FORMAT_MISMATCH: ["A row is not in the format that most rows, or the mapping, have.", "Correct the row, or correct the mapping."],
    AMBIGUOUS: ["The rows, or a name that was given, can be read in two ways.", "Name the format in a mapping, or give more of the name."],
    KEY_TWICE: ["Two fields of a row mean the same.", "Keep one of the two fields."],
    COLUMN_MISSING: [
      "A field that the mapping or the template names is not in the row.",
      "Add the field, or correct its name in the mapping.",
    ],
    LONE_SURROGATE: ["A text holds half of a character.", "Repair the `\\u` escape in the row that the message names."],
    MESSAGE_INVALID: ["A message of a conversation has no role or no content.", "Give each message a role and a content."],
    ROLE_UNKNOWN: [
      "A message has a role that is not known.",
      "Use system, user, assistant or tool, or name the role in the mapping's `roles`.",
    ],
    CONTENT_NOT_TEXT: ["A message holds content that is neither text nor an image.", "Use text, or parts of type text and image_url."],
    IMAGE_UNREADABLE: ["An image of a row has neither a path nor a URL.", "Give the image's path or URL."],
    IMAGES_DIFFER: ["The messages show another number of images than the row has.", "Make the two numbers equal."],
    SYSTEM_TWICE: ["A row has two different system prompts.", "Keep one of them."],
    TOOLS_INVALID: ["The tools of a row are no JSON list of objects.", "Write `tools` as a list of objects."],
    NESTED_TOO_DEEPLY: ["A value of a row is nested too deeply.", "Make the value flatter."],
    NO_USER_TURN: ["A conversation has no user turn.", "Add what the user says."],
    NO_ASSISTANT_TURN: ["A conversation has no assistant turn.", "Add the answer that is to be learned."],
    NOTHING_TRAINED: [
      "Every assistant turn of a conversation is left out of training.",
      "Remove `train: false` or `weight: 0` from at least one turn.",
    ],
    EMPTY_ANSWER: ["The answer of a row is empty.", "Write the answer, or remove the row."],
    EMPTY_PROMPT: ["The prompt of a row is empty.", "Write the prompt, or remove the row."],
    EMPTY_TEXT: ["The text of a row is empty.", "Write the text, or remove the row."],
    HISTORY_INVALID: ["An earlier turn in `history` is no pair of question and answer.", "Write `history` as pairs of texts."],
    SAME_ANSWERS: ["The chosen and the rejected answer of a row are the same.", "Make them differ, or remove the row."],
    LENGTHS_DIFFER: ["Two lists of a row that belong together have different lengths.", "Give both lists the same length."],
    RESPONSE_INVALID: ["A response of a row is neither text nor an object with content and score.", "Write it in one of these two ways."],
    TOKEN_EMPTY: ["A token of a tagged row is empty.", "Remove the token and its label."],
    TAGS_ILLEGAL: [
      "The labels of a tagged row follow each other in a way that marks no entity.",
      "Correct the labels as the message says.",
    ],
    LABEL_NAMES_MISSING: ["Labels are numbers, and nothing names them.", "Name the labels in the mapping's `labels`."],
    LABEL_UNKNOWN: ["A label is not among the named ones.", "Correct the label, or name it in the mapping."],
    LANGUAGE_UNKNOWN: ["The languages of a translation are not known.", "Name them in the row or in the mapping."],
    TRANSLATION_INVALID: ["A row of translations does not hold two texts.", "Give a source and a target text."],
    TOKEN_IDS_INVALID: [
      "A row of token ids holds what is no token id.",
      "Write whole numbers from 0 on, as the base's tokenizer gives them.",
    ],
  },
);

export const reportCodes = defineArea(
  { title: "Warnings in a dataset's report", where: "packages/datasets", audience: "user" },
  {
    UNUSED_KEYS: ["Fields of the rows are kept by no record.", "Rename them if they matter, else leave them."],
    EXACT_DUPLICATES: ["Records say exactly the same as others.", "Remove them, or set `dedupe: exact` in the run."],
    NEAR_DUPLICATES: ["Records say nearly the same as others.", "Look at the examples, or set `dedupe: near` in the run."],
    IN_VALIDATION: ["Records stand in the validation file too, which would then measure memory.", "Remove them from one of the two files."],
    NEARLY_IN_VALIDATION: ["Records are nearly the same as one of the validation file.", "Remove them from one of the two files."],
    CONTROL_TOKENS: ["Texts spell control tokens of a base.", "Remove them unless the text is about them: they are trained as plain text."],
    SECRETS: ["Texts seem to hold passwords or keys.", "Remove them and replace the keys: the model may repeat them."],
    PERSONAL_DATA: ["Texts seem to hold personal data.", "Remove or replace it unless you may use it."],
    LABELS_UNBALANCED: [
      "One label is far more frequent than another.",
      "Add examples of the rare label, or remove some of the frequent one.",
    ],
    SEVERAL_OBJECTS: ["Triples answer one question in several ways.", "Put all objects of a subject and predicate into one row."],
    PREFERRED_ALONE: [
      "Rows hold a preferred response without what it was preferred to.",
      "Put `responses` before them to keep the preference.",
    ],
    NOT_FOR_SFT: [
      "Records are preferences, which supervised fine-tuning leaves out.",
      "Use other records, or a method that trains preferences.",
    ],
  },
);

export const importCodes = defineArea(
  { title: "Imports from a URL or a model hub", where: "packages/runtime, packages/models, services/ingest", audience: "user" },
  {
    URL_INVALID: ["What was given is no URL.", "Give one such as https://host/data.jsonl."],
    URL_REFUSED: ["The URL is of a kind that is not fetched from.", "Use https, without a user's name and password in it."],
    ADDRESS_REFUSED: [
      "The host is not on the public internet.",
      "Use a public host, or have the operator allow it with LORALINE_IMPORT_ALLOW.",
    ],
    FETCH_REFUSED: ["The host does not give the file.", "Check that the file is there and may be read by everybody."],
    FETCH_FAILED: ["The host did not answer, or with an error that may pass.", "Wait: it is tried again."],
    FETCH_TIMEOUT: ["The fetch took too long.", "Use a smaller file or a faster host."],
    FETCH_TOO_LARGE: ["The host sends more bytes than the limit.", "Split the file."],
    TOO_MANY_REDIRECTS: ["The host redirects too often.", "Give the last URL."],
    HUB_NAME_INVALID: ["What was given is no name on the model hub.", "Write it as organisation/name."],
    HUB_NOT_FOUND: ["The hub has nothing of this name, or it may not be read.", "Check the name, the revision and the access."],
    HUB_TOO_MANY_FILES: ["The repository has too many files to be listed.", "Name the file that is meant."],
    HUB_ANSWER_INVALID: ["The server does not answer as a model hub does.", "Check HF_ENDPOINT.", "operator"],
    HUB_FILE_MISSING: ["The repository has no such file.", "Name one of the files that the message lists."],
    HUB_FILE_AMBIGUOUS: ["Several files of the repository may be meant.", "Name one with `file`, or the subset with `config`."],
  },
);
