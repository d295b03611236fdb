/** Codes about datasets: their files, their rows, their reports, and imports from elsewhere. */
import { defineArea } from "./define-area.ts";

export const fileCodes = defineArea(
  {
    title: "Files of a dataset",
    where: "reading a dataset's file, by `loraline data check`, an upload or an import",
    sources: "packages/datasets, services/ingest",
    audience: "user",
  },
  {
    EMPTY_FILE: ["The file is empty, or has no row.", "Upload a file with at least one training example."],
    CONTAINER_UNSUPPORTED: [
      "The file is of a kind that cannot be read: encrypted, packed more often than allowed, or in another format.",
      "Save it as JSON Lines, a JSON array, CSV, TSV, Parquet or Arrow, plain or packed with gzip or zstd.",
    ],
    FILE_CORRUPT: [
      "The file is damaged: its content contradicts its own format.",
      "Write the file again with the program that made it, and upload it again.",
    ],
    FILE_TRUNCATED: [
      "The end of the file is missing: it was cut off, or not closed by the program that wrote it.",
      "Write the file again, close it, and upload it again.",
    ],
    FILE_ENCODING_UNCLEAR: [
      "A text file is not UTF-8, and its encoding cannot be told from its bytes.",
      "Save it as UTF-8, or name its encoding in the mapping (`encoding`).",
    ],
    FILE_TOO_LARGE: [
      "The file, a batch or a page of it is too large when unpacked, or a small file claims to hold very many rows.",
      "Split the file into several datasets, or write it in smaller batches or pages, as the message says.",
    ],
    ROW_TOO_LARGE: ["One row has more bytes than a row may have.", "Shorten the row, or split it into several."],
    NOT_UTF8: [
      "A row is not valid UTF-8 text; the file may be in another encoding.",
      "Save the file as UTF-8, or repair the row that the message names.",
    ],
    NOT_JSON: ["A row, or the whole file, is not valid JSON.", "Correct the JSON at the line that the message names."],
    CSV_HEADER: ["The first row of a CSV file does not name its columns.", "Put the columns' names into the first row, each once."],
    CSV_QUOTES: [
      "A quoted cell of a CSV file is not closed, or text follows its closing quote.",
      "Correct the quotes at the line that the message names; write a quote inside of a cell twice.",
    ],
    CONLL_LINE: [
      "A line of a CoNLL file has no tag, or no token.",
      "Give each line a token and its tag, and put a blank line between sentences.",
    ],
    FORMULA_NOT_SAVED: [
      "An Excel row has a formula whose value was not saved with it, as by a program that does not calculate.",
      "Open the workbook in Excel or LibreOffice and save it, or write values in place of formulas.",
    ],
    CSV_RAGGED: [
      "A row of a CSV file has more or fewer cells than its header.",
      "Give each row as many cells as there are columns; quote cells that hold a delimiter or a line end.",
    ],
    ALL_ROWS_REJECTED: [
      "No row of the file could be read as a training example.",
      "Correct what the message says of the first row; if the columns only have other names, give a mapping (docs/formats.md).",
    ],
    TOO_MANY_UNKNOWN: [
      "Some rows can be read, but too many others are in no known format, or fit several.",
      "Say in a mapping what they are, or set its `on_unknown: drop` to train on the other rows.",
    ],
  },
);

export const rowCodes = defineArea(
  {
    title: "Rows of a dataset",
    where: "reading a dataset's rows, by `loraline data check`, an upload or an import",
    sources: "packages/datasets",
    audience: "user",
  },
  {
    NOT_AN_OBJECT: ["A row is valid JSON, but not a JSON object.", "Write each example as one JSON object: `{...}`."],
    FORMAT_UNKNOWN: [
      "The names of a row's fields fit no known format.",
      "Rename the fields as docs/formats.md lists them, or give a mapping.",
    ],
    FORMAT_MISMATCH: [
      "A row does not have the format that the mapping names.",
      "Correct the row, or the mapping's `format` and `columns`.",
    ],
    AMBIGUOUS: [
      "A row fits two formats; or, on the command line, the beginning of an id fits several runs.",
      "Set the mapping's `format` or remove columns that are not needed; on the command line give more of the id.",
    ],
    JUDGEMENT_NOT_READ: [
      "A row has a key that may say that its answer is bad, counts less or is to be left out (`label`, `score`, `rejected`, `weight`, …), and the row's format does not read it.",
      "List the key in the mapping's `ignore` if it means nothing for the training; otherwise bring the rows into a format that reads it, such as `unpaired` or `preference`.",
    ],
    SCORES_REVERSED: [
      "The scores beside a preference say that its rejected answer is the better one.",
      "Swap `chosen` and `rejected` if they are the wrong way round; remove the scores if they mean something else.",
    ],
    LABEL_NOT_BOOLEAN: [
      "The label of an answer says neither true nor false.",
      "Write `true` for a good answer and `false` for a bad one (1 and 0 work too).",
    ],
    KEY_TWICE: ["Two fields of a row are spellings of the same field.", "Keep one of the two."],
    COLUMN_MISSING: [
      "The mapping's instruction_template names a column that the row does not have.",
      "Add the column to the row, or correct its name in the template.",
    ],
    LONE_SURROGATE: [
      "A text holds half of a character (a lone surrogate).",
      "Repair the `\\u` escape in the field that the message names.",
    ],
    MESSAGE_INVALID: [
      "A message of a conversation does not have the expected shape: it is no object, has no role, or has a wrong field.",
      "Correct the message whose number the error names: an object with `role` and `content`.",
    ],
    ROLE_UNKNOWN: [
      "A message has a role that is not known.",
      "Use system, user, assistant or tool, or name the role in the mapping's `roles`.",
    ],
    CONTENT_NOT_TEXT: [
      "A message holds content that cannot be read there: something other than text and images, or an image where only text is allowed.",
      "Use text; images only in conversations, as parts of type image_url.",
    ],
    IMAGE_UNREADABLE: ["An image of a row has neither a path nor a URL.", "Give the image's path or URL."],
    IMAGES_DIFFER: [
      "The messages hold the mark `<image>` more or fewer times than the row has images.",
      "Write one `<image>` for each image.",
    ],
    FILE_TOO_COSTLY: [
      "Reading the file takes more memory or time than a file may take, whatever its size.",
      "Save it as JSON Lines or CSV, or split it.",
    ],
    PICTURE_NOT_READ: [
      "A row names a picture in a field that its format does not read, so that the answer would be learned without it.",
      "Bring the rows into a format that reads pictures (messages, question + answer, image + caption, chosen + rejected); to train on the text alone, list the field in the mapping's `ignore`.",
    ],
    PICTURE_MISSING: [
      "A row names a picture by its path, and no such file is in the archive, or the upload is no archive.",
      "Pack the rows and their pictures into one ZIP or tar; write the path as it is in the archive, from the rows' file or from the root.",
    ],
    PICTURE_UNREACHABLE: [
      "A row gives a picture's URL, and it could not be fetched: the message has the server's reason. Servers fetch over https, from public addresses only.",
      "Correct the URL, or upload the pictures in an archive.",
    ],
    PICTURE_UNSUPPORTED: ["A row's picture is no PNG, JPEG, WebP or GIF.", "Save it as one of these."],
    PICTURE_BROKEN: [
      "A row's picture cannot be decoded: it is cut off, damaged or empty, or its data URL is no base64.",
      "Save it again, or remove the row.",
    ],
    PICTURE_TOO_LARGE: [
      "A row's picture has more than 20 MiB, 50 megapixels, or 16,384 pixels on a side, or one side is more than 200 times the other.",
      "Make it smaller: a base scales pictures to a few hundred pixels anyway.",
    ],
    PICTURES_TOO_MANY: [
      "A row shows more than 32 pictures, or a dataset has more than a million, or their URLs are more than a server keeps in mind while it fetches them.",
      "Split the row or the dataset.",
    ],
    SYSTEM_TWICE: ["A row has two different system prompts.", "Keep one of them."],
    TOOLS_INVALID: ["The field `tools` of a row is not a JSON list of objects.", "Write `tools` as a list with one object for each tool."],
    REDACTION_BREAKS_JSON: [
      "The mapping says `redact`, and what is to be replaced in a row's tools or tool calls is more than one value of the JSON.",
      "Replace it in the file.",
    ],
    NESTED_TOO_DEEPLY: [
      "A value of a row has too many levels of nested lists and objects.",
      "Use fewer levels in the field that the message names.",
    ],
    NO_USER_TURN: ["A conversation has no message of the user.", "Add a message with the role user."],
    NO_ASSISTANT_TURN: [
      "A conversation has no message of the assistant, so there is no answer to learn.",
      "Add a message with the role assistant.",
    ],
    NOTHING_TRAINED: [
      "Nothing of the row would be learned: every assistant message is marked `train: false` or `weight: 0`, or every label is -100.",
      "Leave at least one assistant message, or one label, to be learned.",
    ],
    EMPTY_ANSWER: ["The answer of a row is empty.", "Write the answer, or remove the row."],
    EMPTY_PROMPT: ["The prompt of a row is empty.", "Write the prompt, or remove the row."],
    EMPTY_TEXT: ["The text of a row is empty.", "Write the text, or remove the row."],
    HISTORY_INVALID: [
      "An item of `history` is not a pair of question and answer.",
      "Write `history` as a list of pairs: `[[question, answer], ...]`.",
    ],
    SAME_ANSWERS: [
      "The preferred and the rejected answer of a row are the same, so no preference can be learned.",
      "Make them differ, or remove the row.",
    ],
    LENGTHS_DIFFER: [
      "Two lists of a row that belong together (tokens and labels, responses and scores, input_ids and labels) have different lengths, or a score is no number.",
      "Give both lists the same length, and each response a number as its score.",
    ],
    RESPONSE_INVALID: [
      "An item of `responses` is neither text nor an object with content and score.",
      "Write each response as text, or as `{content, score}`.",
    ],
    TOKEN_EMPTY: ["A token of a row with tagged tokens is empty, so its label marks nothing.", "Remove the token and its label."],
    TAGS_ILLEGAL: [
      "The labels of a row with tagged tokens are in an order that marks no whole entity, such as I without B before it.",
      "Correct the label whose number the message names.",
    ],
    LABEL_NAMES_MISSING: [
      "Labels are numbers without names; or the file has too many labels for `{labels}` in the mapping's template.",
      "Name the labels in the mapping's `labels`.",
    ],
    LABEL_UNKNOWN: ["A row's label is not in the mapping's `labels`.", "Correct the row's label, or add it to the mapping's `labels`."],
    LANGUAGE_UNKNOWN: [
      "A row of translations does not say from which language into which.",
      "Add the columns source_lang and target_lang, or give the mapping an instruction_template.",
    ],
    TRANSLATION_INVALID: [
      "`translation` does not hold exactly two texts.",
      "Give two texts, such as `{en: ..., zh: ...}`, or choose two with the mapping's `columns`.",
    ],
    TOKEN_IDS_INVALID: [
      "`input_ids` holds a number that cannot be a token id, or a label is neither -100 nor the id at its place.",
      "Use the ids of the base's tokenizer, and labels that are not shifted.",
    ],
  },
);

export const reportCodes = defineArea(
  {
    title: "Warnings in a dataset's report",
    where: "a dataset's report (`loraline data check`, `loraline data report`), or a run's list of records that were left out",
    sources: "packages/datasets, packages/tokens",
    audience: "user",
  },
  {
    ENCODING_DETECTED: [
      "The text was not UTF-8, and its encoding was found by a detector.",
      "Look at the words that the message shows. If they are wrong, name the encoding in the mapping (`encoding`), or save the file as UTF-8.",
    ],
    TITLE_LEFT_OUT: [
      "Rows above the names of an Excel sheet's columns, such as a title in merged cells, are left out.",
      "Nothing has to be done if the message shows only a title.",
    ],
    SHEETS_LEFT_OUT: ["An Excel workbook has several sheets with rows; only the first is read.", "Save the others as files of their own."],
    FILES_LEFT_OUT: [
      "Not all files of an archive or folder are read: splits other than train, and text beside data, are left out.",
      "Pack what you want to train on into an archive of its own.",
    ],
    UNUSED_KEYS: [
      "Fields of the rows are not used: nothing of them is trained.",
      "Rename them as docs/formats.md lists if they matter; otherwise nothing has to be done.",
    ],
    EXACT_DUPLICATES: ["Some records are exact repetitions of others.", "Remove them, or set `dedupe: exact` in the run."],
    NEAR_DUPLICATES: [
      "Some records say nearly the same as earlier ones.",
      "Look at the examples in the report; to leave them out, set `dedupe: near` in the run.",
    ],
    IN_VALIDATION: [
      "Records of the training file are in the validation file too, so the evaluation would measure memory.",
      "Remove them from one of the two files; a run leaves them out of training unless it sets `validation_overlap: keep`.",
    ],
    NEARLY_IN_VALIDATION: [
      "Records of the training file are nearly the same as records of the validation file.",
      "Remove them from one of the two files.",
    ],
    GARBLED_TEXT: [
      "Texts hold characters as they come out when UTF-8 is read in another encoding, such as `Ã¼` in the place of `ü`.",
      "Export the data again as UTF-8, or repair it (Python's ftfy does), or the adapter learns to write so.",
    ],
    CONTROL_TOKENS: [
      "Texts contain the spelling of a base's control tokens, such as `<|im_end|>`.",
      "Give conversations as `messages`, so that the base's own template writes the tokens and only answers are learned. Otherwise remove it unless the text is about such tokens: it is trained as plain text, never as a control token.",
    ],
    SECRETS: [
      "Texts seem to hold passwords or keys, which the model could repeat.",
      "Remove them from the file, and revoke those that are real.",
    ],
    PERSONAL_DATA: [
      "Texts seem to hold personal data, which the model could repeat.",
      "Remove or replace it unless you have the right to use it.",
    ],
    REDACTED: [
      "Secrets or personal data were replaced by their kind, because the dataset's mapping says `redact`.",
      "Nothing, or delete the uploaded file too, which has them still.",
    ],
    LENGTH_DECIDES: [
      "In nine of ten pairs or more the chosen answer is the longer one (or the shorter one), so an adapter can do well by length alone.",
      "Unless that is what it should learn, add pairs where it is the other way round.",
    ],
    CONTRADICTING_PAIRS: [
      "Records say the opposite of earlier ones: the chosen answer was the rejected one there, or a good answer was called bad.",
      "Decide which is right, and remove the other.",
    ],
    TIED_ANSWERS: [
      "Lists have answers with the same score; these are not compared with each other.",
      "Nothing has to be done; finer scores give more pairs.",
    ],
    UNRANKED_ANSWERS: [
      "Lists of answers do not say which one is better; no method can train them.",
      "Give `scores` (higher is better) or `ranks` (1 is best), or a `preferred_response`.",
    ],
    ONE_SIDED_LABELS: [
      "Nearly all labelled answers are good, or nearly all are bad; `kto` learns from the difference.",
      "Add answers of the other kind, or weigh them with `method.desirable_weight` and `method.undesirable_weight`.",
    ],
    LABELS_UNBALANCED: [
      "One label is at least ten times as frequent as another.",
      "Add examples of the rare label, or remove some of the frequent one.",
    ],
    PICTURES_NOT_FETCHED: [
      "Pictures of a file that is checked are at URLs, which a check does not fetch.",
      "Nothing has to be done: the server fetches them when the file is uploaded, and rejects rows whose pictures it cannot get.",
    ],
    SEVERAL_OBJECTS: [
      "Rows with the same subject and predicate name different objects, so one question has several answers.",
      "Put all objects of a subject and predicate into one row.",
    ],
    PREFERRED_ALONE: [
      "Rows name a preferred response, but not the responses it was preferred to; they are trained as plain answers.",
      "To keep them as preferences, put the rows with `responses` before them.",
    ],
    NOT_FOR_SFT: [
      "Records are preferences between answers, which supervised fine-tuning leaves out.",
      "Set the run's `method` to `dpo`, `orpo`, `simpo` or `kto`, or write rows with one answer each; otherwise nothing has to be done.",
    ],
  },
);

export const importCodes = defineArea(
  {
    title: "Imports from a URL or a model hub",
    where: "fetching a dataset or an adapter from a URL or a model hub",
    sources: "packages/runtime, packages/models, services/ingest",
    audience: "user",
  },
  {
    URL_INVALID: ["The source is not a URL.", "Give one such as https://host/data.jsonl."],
    URL_REFUSED: [
      "The URL is not one that is fetched from: another scheme than https, or a user's name and password in it.",
      "Correct the URL as the message says.",
    ],
    ADDRESS_REFUSED: [
      "The host is not on the public internet, so nothing is fetched from it.",
      "Use a public host, or ask the operator to allow this one with LORALINE_IMPORT_ALLOW=host:port.",
    ],
    FETCH_REFUSED: [
      "The file cannot be had from the host: the host does not exist, or answered with an error that waiting does not change.",
      "Check the URL, and that everybody may read the file without signing in.",
    ],
    FETCH_FAILED: ["The host did not answer, or answered with an error that may pass.", "Wait: it is tried again."],
    FETCH_TIMEOUT: [
      "The file did not arrive within the time that a fetch may take.",
      "Use a smaller file or a faster host, or upload the file yourself.",
    ],
    FETCH_TOO_SLOW: [
      "The host sends the file so slowly that it would keep a place from other imports.",
      "Use a faster host, or upload the file yourself.",
    ],
    QUOTA_HISTORY: [
      "The events of the tenant's runs, datasets and adapters take as many bytes as they may.",
      "Delete adapters or datasets, or have the operator raise the quota; `loraline limits list` shows it.",
    ],
    QUOTA_ADMIN_ACTIONS: [
      "The tenant's admins made as many keys, changed as many limits and deleted as many adapters within a day as they may.",
      "Wait, or have the operator raise the quota adminActionsPerDay. Keys can be revoked all the same.",
    ],
    QUOTA_DATASETS: [
      "The tenant has as many datasets as it may have.",
      "Delete some that are not needed any more, or have the operator raise the quota; `loraline limits list` shows it.",
    ],
    QUOTA_IMPORTS: [
      "As many imports as may be under way at once are, of this tenant or of all.",
      "Wait: it goes on by itself. `loraline limits list` shows the quota, which the operator can raise.",
    ],
    FETCH_TOO_LARGE: [
      "The files to fetch are larger than the limit that the message names.",
      "Split the file; of a repository, name one file with `file`.",
    ],
    TOO_MANY_REDIRECTS: ["The host redirects more often than is followed.", "Give the URL at which the redirects end."],
    HUB_NAME_INVALID: ["The name is not one of a model hub.", "Write it as organisation/name."],
    HUB_NOT_FOUND: [
      "The hub has no repository of this name and revision, or nobody may read it without signing in.",
      "Check the name and the revision, and that the repository is public.",
    ],
    HUB_TOO_MANY_FILES: ["The hub's repository has too many files to be listed.", "Name the file that is wanted with `file`."],
    HUB_ANSWER_INVALID: [
      "The server at HF_ENDPOINT does not answer as a model hub does.",
      "Correct HF_ENDPOINT, which must be the address of a model hub.",
      "operator",
    ],
    HUB_FILE_MISSING: [
      "The repository has no such file, no data file for the split, or not all parts of one.",
      "Name one of the files that the message lists with `file`.",
    ],
    HUB_FILE_AMBIGUOUS: ["Several files of the repository fit what was asked for.", "Name one with `file`, or the subset with `config`."],
  },
);
