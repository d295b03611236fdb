/** Encrypts texts with the installation's secret, so that whoever keeps them can neither read nor change them. */
import { createCipheriv, createDecipheriv, hash, randomBytes } from "node:crypto";

interface Seal {
  close(text: string): string;
  /** @returns undefined: it was changed, or sealed with another secret. */
  open(sealed: string): string | undefined;
}

const algorithm = "aes-256-gcm";
const [ivBytes, tagBytes] = [12, 16];

/** @param secret - absent: a new one, so that nothing outlives the process. */
export function createSeal(secret: string | undefined): Seal {
  const key = hash("sha256", `loraline console seal ${secret ?? randomBytes(32).toString("hex")}`, "buffer");
  return {
    close(text) {
      const iv = randomBytes(ivBytes);
      const cipher = createCipheriv(algorithm, key, iv);
      return Buffer.concat([iv, cipher.update(text, "utf8"), cipher.final(), cipher.getAuthTag()]).toString("base64url");
    },
    open(sealed) {
      const bytes = Buffer.from(sealed, "base64url");
      if (bytes.length < ivBytes + tagBytes) return undefined;
      const decipher = createDecipheriv(algorithm, key, bytes.subarray(0, ivBytes));
      decipher.setAuthTag(bytes.subarray(-tagBytes));
      try {
        return Buffer.concat([decipher.update(bytes.subarray(ivBytes, -tagBytes)), decipher.final()]).toString("utf8");
      } catch {
        return undefined;
      }
    },
  };
}
