/**
 * Makes instruction rows, half Chinese and half English, from a tokenizer's vocabulary. Its order is about that of frequency, so words
 * drawn by Zipf's law are as frequent as in real text, in new combinations. There are also numbers, lists, code and words that no
 * vocabulary has. The same seed gives the same rows.
 */
import { mkdir, writeFile } from "node:fs/promises";
import { dirname } from "node:path";

interface Vocabularies {
  english: readonly string[];
  chinese: readonly string[];
}

/** @param vocab - the vocabulary of a byte-level BPE, in the order of its ids. */
function wordsOf(vocab: Readonly<Record<string, number>>): Vocabularies {
  const tokens = Object.keys(vocab).sort((a, b) => (vocab[a] as number) - (vocab[b] as number));
  const text = tokens.map((token) => fromByteLevel(token));
  return {
    english: [...new Set(text.filter((word) => /^ ?[a-z]{2,14}$/.test(word)).map((word) => word.trim()))],
    chinese: text.filter((word) => /^\p{Script=Han}{1,6}$/u.test(word)),
  };
}

/** GPT-2's spelling of bytes: printable bytes stand for themselves, the others are code points from 256 on. */
function fromByteLevel(token: string): string {
  const bytes = Array.from(token, (character) => {
    const code = character.codePointAt(0) as number;
    if (code < 256) return code;
    const other = code - 256;
    return other <= 32 ? other : other <= 66 ? other - 33 + 127 : 173;
  });
  return new TextDecoder().decode(Uint8Array.from(bytes));
}

interface InstructionRow {
  instruction: string;
  input: string;
  output: string;
}

/** @returns the size of the file, in bytes. */
export async function writeInstructionRows(path: string, vocab: Readonly<Record<string, number>>, count: number): Promise<number> {
  const words = wordsOf(vocab);
  const random = createRandom(20_261_124);
  const lines: string[] = [];
  for (let i = 0; i < count; i++) lines.push(JSON.stringify(instructionRow(words, random)));
  const text = `${lines.join("\n")}\n`;
  await mkdir(dirname(path), { recursive: true });
  await writeFile(path, text);
  return Buffer.byteLength(text);
}

function instructionRow({ english, chinese }: Vocabularies, random: () => number): InstructionRow {
  const upTo = (n: number): number => Math.floor(random() * n);
  /** @returns rank r with a probability of about 1 / r. */
  const zipf = (words: readonly string[]): string => words[Math.min(words.length - 1, Math.floor(words.length ** random()) - 1)] as string;
  const logNormal = (median: number, sigma: number): number => {
    const normal = Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
    return Math.max(1, Math.round(median * Math.exp(sigma * normal)));
  };
  const strange = (): string => Array.from({ length: 3 + upTo(8) }, () => "abcdefghijklmnopqrstuvwxyz"[upTo(26)]).join("");
  const isChinese = random() < 0.5;

  const sentence = (): string => {
    const parts: string[] = [];
    for (let left = 4 + upTo(18); left > 0; left--) {
      const special = random();
      if (special < 0.02) parts.push(String(upTo(10 ** (1 + upTo(6)))));
      else if (special < 0.03) parts.push(isChinese ? zipf(english) : strange());
      else parts.push(zipf(isChinese ? chinese : english));
      if (left > 3 && random() < 0.1) parts.push(isChinese ? "\uff0c" : ",");
    }
    if (isChinese) return `${parts.join("")}${"\u3002\u3002\u3002\uff01\uff1f"[upTo(5)]}`;
    const joined = parts.join(" ").replaceAll(" ,", ",");
    return `${joined[0]?.toUpperCase()}${joined.slice(1)}${"...?!"[upTo(5)]}`;
  };
  const text = (characters: number): string => {
    let result = sentence();
    while (result.length < characters) {
      const form = random();
      if (form < 0.06) result += `\n\n${1 + upTo(9)}. `;
      else if (form < 0.1) result += "\n- ";
      else if (form < 0.12)
        result += `\n\n\`\`\`python\nfor ${strange()} in range(${upTo(100)}):\n    print("${zipf(english)}", x["${zipf(english)}"])\n\`\`\`\n`;
      else result += isChinese ? "" : " ";
      result += sentence();
    }
    return result;
  };
  const scale = isChinese ? 0.4 : 1;
  return {
    instruction: text(logNormal(60 * scale, 0.5)),
    input: random() < 0.35 ? text(logNormal(150 * scale, 0.8)) : "",
    output: text(logNormal(500 * scale, 0.8)),
  };
}

/** mulberry32: numbers from 0 to below 1. */
function createRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
