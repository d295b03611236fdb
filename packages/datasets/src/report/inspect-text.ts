/** Finds parts of a record's text that its owner should check: secrets, personal data, spellings of control tokens. */
import { lintSource } from "@secretlint/core";
import { creator as secretRules } from "@secretlint/secretlint-rule-preset-recommend";
import validator from "validator";

/** Something found in a text, by its kind; never the secret itself. */
export interface Hit {
  /** Index of the text. */
  readonly text: number;
  readonly kind: string;
}

const separator = "\n\u0000\n";

/** Keys and tokens of well-known services, private keys, credentials in URLs: secretlint's recommended rules. */
export async function findSecrets(texts: readonly string[]): Promise<Hit[]> {
  const starts: number[] = [];
  let length = 0;
  for (const text of texts) {
    starts.push(length);
    length += text.length + separator.length;
  }
  const { messages } = await lintSource({
    source: { filePath: "/dataset.txt", ext: ".txt", contentType: "text", content: texts.join(separator) },
    options: { config: { rules: [{ id: "@secretlint/secretlint-rule-preset-recommend", rule: secretRules, options: {} }] } },
  });
  const hits = messages.map(({ messageId, range: [start] }) => ({
    text: starts.findLastIndex((from) => from <= start),
    kind: messageId.toLowerCase(),
  }));
  return unique(hits);
}

interface Kind {
  readonly kind: string;
  readonly pattern: RegExp;
  readonly is: (candidate: string) => boolean;
}
/** Cheap patterns find candidates; then checksums and a library decide. */
const personal: readonly Kind[] = [
  { kind: "email", pattern: /[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,5}/g, is: (text) => validator.isEmail(text) && !isExample(text) },
  {
    kind: "phone",
    pattern: /(?<![\w.+-])(?:\+\d[\d -]{8,17}\d|1[3-9]\d{9})(?![\w.-]*\w)/g,
    is: (text) => validator.isMobilePhone(text.replace(/[ -]/g, "")),
  },
  { kind: "card", pattern: /(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w.-]*\w)/g, is: (text) => validator.isCreditCard(text) },
  { kind: "id-card", pattern: /(?<![\w.-])\d{17}[\dXx](?![\w-])/g, is: (text) => validator.isIdentityCard(text, "zh-CN") },
  {
    kind: "iban",
    pattern: /(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z\d]{4}){2,7}(?: ?[A-Z\d]{1,3})?(?!\w)/g,
    is: (text) => validator.isIBAN(text.replaceAll(" ", "")),
  },
];
/** Domains reserved for documentation (RFC 2606): such an address belongs to nobody. */
const isExample = (email: string): boolean =>
  /@(?:[\w-]+\.)*(?:example\.(?:com|org|net)|[\w-]+\.(?:test|example|invalid|localhost))$/i.test(email);

export function findPersonalData(texts: readonly string[]): Hit[] {
  const hits: Hit[] = [];
  for (const [index, text] of texts.entries()) {
    const hasAt = text.includes("@");
    const hasNumber = /\d\d/.test(text);
    for (const { kind, pattern, is } of personal) {
      if (!(kind === "email" ? hasAt : hasNumber)) continue;
      if ([...text.matchAll(pattern)].some(([candidate]) => is(candidate))) hits.push({ text: index, kind });
    }
  }
  return hits;
}

/** Control tokens of the template families. In a record they stay text, but the author hardly ever wants that. */
const controlToken =
  /<\|[a-z][a-z0-9_]{1,40}\|>|<\/?s>|\[\/?INST\]|<<\/?SYS>>|<(?:start|end)_of_turn>|<[｜|][^<>｜|]{1,40}[｜|]>|<\/?think>|<\/?tool_call>/gu;

/** @returns each control token that is spelled in a text, once. */
export const findControlTokens = (texts: readonly string[]): Hit[] =>
  unique(
    texts.flatMap((text, index) =>
      text.includes("<") || text.includes("[") ? [...text.matchAll(controlToken)].map(([kind]) => ({ text: index, kind })) : [],
    ),
  );

const unique = (hits: readonly Hit[]): Hit[] => [...new Map(hits.map((hit) => [`${hit.text} ${hit.kind}`, hit])).values()];
