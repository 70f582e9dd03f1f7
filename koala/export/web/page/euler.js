// Euler's method on SDXL's noise schedule, plain and ancestral, as k-diffusion (Karras et al. 2022) and diffusers step.

/** Half to even, as numpy rounds. */
function round(value) {
  const low = Math.floor(value);
  if (value - low !== 0.5) return Math.round(value);
  return low % 2 ? low + 1 : low;
}

/** {timesteps (steps), sigmas (steps + 1)}: evenly spaced from the noisiest; `own` is a model's schedule. */
export function schedule(own, steps) {
  const count = own.num_train_timesteps, [first, last] = [Math.sqrt(own.beta_start), Math.sqrt(own.beta_end)];
  const levels = [];
  let signal = 1; // the share of the picture's variance that is left
  for (let i = 0; i < count; i++) {
    signal *= 1 - (first + ((last - first) * i) / (count - 1)) ** 2;
    levels.push(Math.sqrt((1 - signal) / signal));
  }
  const by = count - count / steps - count; // as numpy's arange has it, to the last bit
  const timesteps = Array.from({ length: steps }, (_, i) => round(count + i * by) - 1);
  return { timesteps, sigmas: [...timesteps.map((t) => levels[t]), 0] };
}

/** One step from sigma to the next, latents changed in place; `fresh` is unit noise, null for plain Euler. */
export function step(latents, predicted, sigma, next, fresh) {
  const up = fresh ? Math.sqrt((next ** 2 * (sigma ** 2 - next ** 2)) / sigma ** 2) : 0;
  const down = Math.sqrt(next ** 2 - up ** 2);
  for (let i = 0; i < latents.length; i++) {
    latents[i] += predicted[i] * (down - sigma) + (fresh ? fresh[i] * up : 0);
  }
}

/** What the latents would be without their noise. */
export function clean(latents, predicted, sigma) {
  return latents.map((value, i) => value - sigma * predicted[i]);
}
