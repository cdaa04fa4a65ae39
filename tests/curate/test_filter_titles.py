"""Titles that are no description: a table of what goes and of what stays."""

from __future__ import annotations

import pytest

from ostension.curate.captions_titles import KINDS, USUAL, kind_of_title

GO = {
    "file name": """
        IMG_1234
        IMG_1234.JPG
        img 1234
        IMG_20160716_113957
        IMG_20160716_113957_HDR.jpg
        IMG-20190105-WA0007
        DSC00012
        DSC_0012.JPG
        _DSC4321
        DSCN1234
        DSCF0042.RAF
        _MG_4567
        MVI_0003.AVI
        P1000123
        P7160042.JPG
        S1234567
        L1000321
        100_1234
        101-0123_IMG
        CIMG0815
        SANY0034
        SAM_1234
        GOPR0123
        DJI_0042
        PXL_20210704_182233445
        scan0001
        Scan 12
        Picture 023
        photo 3
        Photo-0012
        Foto0003
        image 14
        Image00001.png
        Untitled-1
        20160716 113957.JPG
        20160716 113957
        2016-07-16 11.39.57
        2016-07-16 11.39.57-2.jpg
        Screenshot 2016-08-02 10.11.12
        Screenshot_20170801-120102
        Screen Shot 2015-06-01 at 10.15.33 AM
        WhatsApp Image 2017-05-06 at 14.22.11
        IMG_1234 (1)
        IMG_1234-2.jpg
        IMG_1234_edited
        DSC_0012 copy
        IMG_0042-1024x768.jpg
        3f2504e0-4f89-11d3-9a0c-0305e82c3301
        d41d8cd98f00b204e9800998ecf8427e.png
        1110208841_5bb6806afe.jpg
        1110208841_5bb6806afe_o.jpg
        FB_IMG_1452345678901
        received_10203040506070801
        12345678
        0042.jpg
        007-2
        untitled.png
        image.jpg
        1.gif
        b.png
        DCIM/100CANON/IMG_0001.JPG
        C:\\Users\\me\\DSC00012.JPG
        wp_20130101_001
        aX3kd9QpLw82mZk01vB7.jpg
    """,
    "camera settings": """
        OLYMPUS DIGITAL CAMERA
        SONY DSC
        KODAK Digital Still Camera
        SAMSUNG CAMERA PICTURES
        Exif_JPEG_PICTURE
        Processed with VSCO with a6 preset
        Processed with VSCOcam with f2 preset
        Created with GIMP
        Uploaded by Flickr mobile
        f/2.8 1/250 ISO 400
        f/8, 1/60 sec, ISO 100, 50mm
        Canon EOS 5D Mark II, EF 24-70mm f/2.8L USM, 1/250s at f/8, ISO 100
        Camera: Nikon D90 Exposure: 0.003 sec (1/320) Aperture: f/5.6 Focal Length: 200 mm ISO Speed: 200
        Nikon D700 | 50mm | f1.8 | 1/125 | ISO 800
        ISO 200, 1/500s
    """,
    "address": """
        http://www.example.com/pictures/12.html
        https://example.org/a?b=c
        www.example.com
        someone@example.org
        <a href="http://example.com"><img src="x.jpg"></a>
        <br/>
        &nbsp;
        via http://example.com/1234
    """,
    "boilerplate": """
        click to enlarge
        Click here to view larger image
        (Click on image to enlarge)
        Click for more info
        View full size
        image may contain: 2 people, people smiling
        Image not available
        No image available
        no title
        untitled
        null
        N/A
        photo by John Smith
        Photo: Reuters
        Photo credit: Jane Q. Public / AP
        Credit: NASA
        image
        profile picture
        Loading...
    """,
    "copyright": """
        © 2015 John Smith
        Copyright 2012 Example Inc. All rights reserved.
        (c) Jane Doe
        All rights reserved
    """,
}
STAY = """
    sunset over the lake.jpg
    golden-gate-bridge-2015.jpg
    my-cat-on-the-sofa.png
    Our dog, f/2.8 1/250 s ISO 400
    Pelican in flight, Canon EOS 7D, 1/2000 s
    a man with a digital camera
    Olympus digital camera on a table
    Canon EOS 5D
    Nikon D90 with a 50mm lens
    IMG Academy football field
    Sam 2010
    Tom 2004
    Movie 43
    Route 66
    Boeing 747
    Apollo 11
    R2-D2
    Windows 95
    Area 51
    7 personal finance tips
    Lake
    Image of a lake
    photo by the lake
    photo by my sister at the beach
    picture of two dogs
    A man clicks to enlarge a picture on his phone
    www is written on a wall, see http://example.com for more of this old house
    Paris, France
    dsc meeting
    scan of an old map
    Screenshot of a game
    screenshot of Windows 95
    untitled painting by a child
    no entry sign
    Credit card
    none of the dogs look up
    Copyright sign
    facade
    deadbeef cafe
    effaced
    New York 2012
    Christmas 2009
    2009 Honda Civic
    50 cent
    1/2 cup of flour
    the 100 metres
    Café
    日本の山
    кошка на диване
    P-51 Mustang
    A380
    F1 2010
    Slide in the park
    Video game
    Camera
    file cabinet
    next
    enlarged heart
    Portra 400 portrait of a girl
    architecture-drawing-house-plan-elevation2
    IMG_1234 my cat
    our new kitchen, IMG_1234
    Photo: a dog runs over the grass
    @home
    <PERSON> at the beach
    AT&T park
"""


def lines(table):
    return [line.strip() for line in table.splitlines() if line.strip()]


@pytest.mark.parametrize("kind", GO)
def test_titles_that_describe_nothing_are_found(kind):
    found = {text: kind_of_title(text, KINDS) for text in lines(GO[kind])}
    assert {text: got for text, got in found.items() if got != kind} == {}


def test_titles_that_describe_a_picture_stay():
    assert {text: kind for text in lines(STAY) if (kind := kind_of_title(text, KINDS))} == {}


def test_only_the_kinds_that_are_asked_for_are_looked_for():
    assert kind_of_title("IMG_1234", ("boilerplate",)) is None
    assert kind_of_title("© 2015 John Smith", USUAL) is None


def test_a_long_caption_is_never_a_title_and_costs_no_time():
    for text in ("0" * 100_000, "a_" * 50_000, "f/2 " * 40_000, "<" * 100_000, "photo by " + "x " * 40_000):
        assert kind_of_title(text, KINDS) is None


@pytest.mark.parametrize("unit", ["0", "a_1", "1 ", "f/2", "(1)", "&a", "<a ", "www.", "x-", "img", " - copy", "click to "])
def test_no_text_of_the_longest_length_makes_the_rules_slow(unit):
    kind_of_title((unit * 400)[:400], KINDS)  # the limit on a test's time would end it
