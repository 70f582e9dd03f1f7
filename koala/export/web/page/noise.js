// torch's noise of a seed on a CPU: the Mersenne Twister of Matsumoto and Nishimura (1998), and torch's way from its
// words to a Gaussian (Box and Muller 1958, in blocks of sixteen), rounded to single precision where torch rounds.

const SIZE = 624, MIDDLE = 397;
const f = Math.fround;
const TWO_PI = f(2 * Math.PI);

/** The source of randomness of `torch.Generator().manual_seed(seed)`; a seed is a whole number below 2^32. */
export class Generator {
  constructor(seed) {
    this.state = new Uint32Array(SIZE);
    this.state[0] = seed;
    for (let i = 1; i < SIZE; i++) {
      const last = this.state[i - 1];
      this.state[i] = Math.imul(1812433253, last ^ (last >>> 30)) + i;
    }
    this.next = SIZE;
    this.spare = null; // the second of a pair of Gaussians drawn one by one
  }

  /** The next word, 32 bits. */
  word() {
    if (this.next === SIZE) this.twist();
    let y = this.state[this.next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  twist() {
    const s = this.state;
    for (let i = 0; i < SIZE; i++) {
      const y = (s[i] & 0x80000000) | (s[(i + 1) % SIZE] & 0x7fffffff);
      s[i] = s[(i + MIDDLE) % SIZE] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.next = 0;
  }

  /** In [0, 1) with 24 random bits, as torch draws single precision. */
  single() {
    return (this.word() & 0xffffff) / 2 ** 24;
  }

  /** In [0, 1) with 53 random bits out of two words, the high one first. */
  double() {
    const high = this.word() & 0x1fffff;
    return (high * 2 ** 32 + this.word()) / 2 ** 53;
  }

  /** torch.randn(count, generator=this): a Float32Array. */
  randn(count) {
    return count < 16 ? this.few(count) : this.many(count);
  }

  few(count) {
    return Float32Array.from({ length: count }, () => {
      if (this.spare !== null) {
        const found = this.spare;
        this.spare = null;
        return found;
      }
      const turn = 2 * Math.PI * this.double();
      const radius = Math.sqrt(-2 * Math.log1p(-this.double()));
      this.spare = radius * Math.sin(turn);
      return radius * Math.cos(turn);
    });
  }

  many(count) {
    const drawn = new Float32Array(count);
    for (let i = 0; i < count; i++) drawn[i] = this.single();
    for (let i = 0; i + 16 <= count; i += 16) gaussian(drawn, i);
    if (count % 16) { // what no block of sixteen covers: the last sixteen values, drawn anew
      for (let i = count - 16; i < count; i++) drawn[i] = this.single();
      gaussian(drawn, count - 16);
    }
    return drawn;
  }
}

/** Sixteen uniform numbers from `at` on become Gaussian: eight radii, then eight angles. */
function gaussian(values, at) {
  for (let i = at; i < at + 8; i++) {
    const radius = f(Math.sqrt(f(-2 * f(Math.log(f(1 - values[i]))))));
    const angle = f(TWO_PI * values[i + 8]);
    values[i] = radius * f(Math.cos(angle));
    values[i + 8] = radius * f(Math.sin(angle));
  }
}
