//! Text in pictures, in Noto Sans Mono: Latin letters; what the font lacks is drawn as `?`.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use super::image::Image;

const SIZE: RasterHeight = RasterHeight::Size16;

/// Pixels from one character to the next.
pub const WIDTH: usize = get_raster_width(FontWeight::Regular, SIZE);
/// Pixels from one line to the next.
pub const HEIGHT: usize = SIZE.val();

/// Writes a line with its top left corner there. What lies outside the picture is cut off.
pub fn write(picture: &mut Image, left: usize, top: usize, text: &str, colour: [u8; 3]) {
    let glyph = |c: char| get_raster(c, FontWeight::Regular, SIZE);
    for (at, c) in text.chars().enumerate() {
        let Some(glyph) = glyph(c).or_else(|| glyph('?')) else { continue };
        for (y, row) in (top..picture.height).zip(glyph.rows()) {
            for (x, &ink) in (left + at * WIDTH..picture.width).zip(row) {
                let pixel = &mut picture.data[(y * picture.width + x) * 3..][..3];
                for (value, colour) in pixel.iter_mut().zip(colour) {
                    let mixed = (255 - u32::from(ink)) * u32::from(*value) + u32::from(ink) * u32::from(colour);
                    *value = (mixed / 255) as u8;
                }
            }
        }
    }
}

/// Breaks a text at blanks into at most `lines` lines of at most `columns` characters; `...` says that there was more.
pub fn wrap(text: &str, columns: usize, lines: usize) -> Vec<String> {
    let columns = columns.max(4);
    let mut wrapped = vec![String::new()];
    for word in text.split_whitespace() {
        let mut rest: Vec<char> = word.chars().collect();
        while !rest.is_empty() {
            let Some(line) = wrapped.last_mut() else { break };
            let used = line.chars().count();
            let blank = usize::from(used > 0);
            if used + blank + rest.len() <= columns {
                line.extend(std::iter::repeat_n(' ', blank).chain(rest.drain(..)));
            } else if used == 0 {
                line.extend(rest.drain(..columns)); // a word longer than a line
                wrapped.push(String::new());
            } else {
                wrapped.push(String::new());
            }
        }
    }
    wrapped.retain(|line| !line.is_empty());
    if wrapped.len() > lines {
        wrapped.truncate(lines);
        if let Some(last) = wrapped.last_mut() {
            *last = last.chars().take(columns - 3).chain("...".chars()).collect();
        }
    }
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_drawn_and_cut_at_the_border() {
        let mut picture = Image::filled(3 * WIDTH, HEIGHT, [255; 3]);
        write(&mut picture, 0, 0, "I é 雪!", [0, 0, 200]);
        let dark = |picture: &Image, column: usize| {
            let inside = |i: &usize| (column * WIDTH..(column + 1) * WIDTH).contains(&(i % picture.width));
            (0..picture.width * picture.height).filter(inside).filter(|i| picture.data[i * 3] < 128).count()
        };
        assert!(dark(&picture, 0) > 5 && dark(&picture, 1) == 0 && dark(&picture, 2) > 5);
        assert!(picture.data.chunks(3).all(|p| p[0] == p[1] && p[2] >= p[0]));
        let mut small = Image::filled(3, 2, [9; 3]);
        write(&mut small, 2, 1, "WW", [255; 3]);
        write(&mut small, 7, 9, "WW", [255; 3]);
        assert_eq!(small.pixel(0, 0), [9; 3]);
        // What the font lacks looks like a question mark.
        let mut pair = [Image::filled(WIDTH, HEIGHT, [255; 3]), Image::filled(WIDTH, HEIGHT, [255; 3])];
        for (picture, text) in pair.iter_mut().zip(["雪", "?"]) {
            write(picture, 0, 0, text, [0; 3]);
        }
        assert_eq!(pair[0], pair[1]);
    }

    #[test]
    fn lines_break_at_blanks() {
        assert_eq!(wrap("a small red  star", 8, 9), ["a small", "red star"]);
        assert_eq!(wrap("unbelievable words", 5, 9), ["unbel", "ievab", "le", "words"]);
        assert_eq!(wrap("one two three", 5, 2), ["one", "tw..."]);
        assert_eq!(wrap("abcde fghij k", 5, 2), ["abcde", "fg..."]);
        assert_eq!(wrap("  ", 5, 2), Vec::<String>::new());
        assert_eq!(wrap("ab", 0, 1), ["ab"]);
    }
}
